"""Ten exercises: a page, a checker and a model solution each. README.md has the table."""
