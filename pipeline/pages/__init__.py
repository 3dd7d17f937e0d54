"""Pages: one HTML file each, with everything in it, for whatever is to be looked at.

The frame (template, styles, script), pictures within a budget, and charts. A page asks no network
for anything; its text is escaped. It may import ``copies`` and what lies below it. Bokeh and Jinja2
are an extra, and are imported when a page is made.
"""
