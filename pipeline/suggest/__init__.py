"""What to label next: unlabelled images that a head is unsure of, unlike each other.

Stored features answer; no backbone runs, and nothing is trained that is kept. It may import
``runs`` and what lies below it, and no other stage.
"""
