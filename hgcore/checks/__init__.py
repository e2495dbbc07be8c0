"""Is it right, and if not, why?"""
