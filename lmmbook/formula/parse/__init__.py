"""What a formula says: its text, the functions that it may call, and the terms that it means.

Nothing here has seen a row of data.
"""
