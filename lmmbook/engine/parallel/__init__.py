"""One fit on several devices or processes: what is shared out, and never what is computed."""
