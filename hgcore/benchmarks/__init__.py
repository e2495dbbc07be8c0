"""A race against other libraries, one problem for every method (the atlas), and GPU checks."""
