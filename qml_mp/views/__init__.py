"""Client and web process: what people are shown, and what they do to single jobs, by command or on the page.

It prints and renders nothing.
"""
