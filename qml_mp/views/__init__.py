"""Client: what people are shown, and what they do to single jobs, whether by a command or on the page.

It prints and renders nothing.
"""
