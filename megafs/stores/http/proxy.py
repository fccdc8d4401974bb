"""The proxy that the environment names for a server; the rules are urllib's and curl's.

https_proxy, http_proxy, all_proxy and no_proxy, in small letters or capitals.
"""

from __future__ import annotations

import urllib.request

from megafs.stores.http.transport import Origin


def proxy_for(origin: Origin) -> str | None:
    """Return the URL of the proxy to *origin*, or None.  It may hold a password."""
    if urllib.request.proxy_bypass(origin.host):
        return None
    known = urllib.request.getproxies()
    url = known.get(origin.scheme) or known.get("all")
    if not url:
        return None
    return url if "://" in url else f"http://{url}"
