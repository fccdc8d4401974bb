"""The page that links open: static files, which any web server can serve (static/).

`megafs share page` writes them where they shall be served; never into the store, which could then
serve another page in their place.
"""
