"""What leaves the answer as it is: units, centring, and shifts that no rating sees.

Nothing here knows how a fit is made.
"""
