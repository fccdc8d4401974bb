"""What the name of a well-known service's endpoint tells: the region, and how it is addressed.

A signature names a region, and many services refuse another than their own.  From the vendors'
documentation of their S3 interfaces; a service that takes any region needs no row here.
"""

from __future__ import annotations

import re
from urllib.parse import urlsplit

# A region as most services write it, in a label of its own: eu-west-1, us-gov-west-1, fr-par.
_R = r"([a-z][a-z0-9]*(?:-[a-z0-9]+)*)"

_ANY = r"[a-z0-9.-]+"
_VPC = r"(?:\.vpce)?"

#: (what the whole host is, its region: "" for the first group of the pattern).
_HOSTS: tuple[tuple[re.Pattern[str], str], ...] = tuple(
    (re.compile(pattern), region)
    for pattern, region in (
        # Amazon: old and new names, dual-stack, FIPS, and interface endpoints in a VPC.
        (r"s3(?:-external-1)?\.amazonaws\.com", "us-east-1"),
        (rf"(?:{_ANY}\.)?s3(?:-fips)?\.(?:dualstack\.)?{_R}{_VPC}\.amazonaws\.com(?:\.cn)?", ""),
        (rf"s3(?:-fips)?-{_R}\.amazonaws\.com(?:\.cn)?", ""),
        # One region only, whatever the place.
        (r"(?:[a-z0-9-]+\.)+r2\.cloudflarestorage\.com", "auto"),
        (r"storage\.googleapis\.com", "auto"),
        (r"(?:fly\.storage\.tigris\.dev|t3\.storage\.dev|t3\.storageapi\.dev)", "auto"),
        (r"(?:storage|s3)\.yandexcloud\.net", "ru-central1"),
        (r"s3\.wasabisys\.com", "us-east-1"),
        # The region is a label of the name.
        (rf"s3\.{_R}\.scw\.cloud", ""),
        (rf"s3\.{_R}\.(?:io|perf)\.cloud\.ovh\.(?:net|us)", ""),
        (rf"s3\.(?:private\.|direct\.)?{_R}\.cloud-object-storage\.appdomain\.cloud", ""),
        (rf"[a-z0-9]+\.compat\.objectstorage\.{_R}\.(?:oci\.customer-oci|oraclecloud)\.com", ""),
        (rf"cos\.{_R}\.(?:myqcloud|tencentcos)\.(?:com|cn)", ""),
        (rf"obs\.{_R}\.myhuaweicloud\.(?:com|eu)", ""),
        (rf"(?:s3\.)?oss-{_R}\.aliyuncs\.com", ""),
        (rf"sos-{_R}\.exo\.io", ""),
        (rf"{_R}\.your-objectstorage\.com", ""),
        (rf"{_R}\.linodeobjects\.com", ""),
        (rf"{_R}\.vultrobjects\.com", ""),
        (rf"{_R}\.magaluobjects\.com", ""),
        (rf"{_R}\.s3\.synologyc2\.net", ""),
        # Backblaze, MEGA S4, Wasabi, IONOS, Lyve Cloud, and others who write s3.REGION.NAME.
        (r"s3[.-]([a-z]{2}(?:-[a-z]+)+-\d+)\.[a-z0-9.-]+", ""),
    )
)  # fmt: skip

# Those that take a bucket in the host's name only.
_VIRTUAL = re.compile(r".*\.(?:aliyuncs|myqcloud|tencentcos)\.(?:com|cn)")


def region_of(endpoint: str) -> str:
    """The region in the name of a well-known service's *endpoint*, or ""."""
    host = _host(endpoint)
    for pattern, region in _HOSTS:
        if match := pattern.fullmatch(host):
            return region or match.group(1)
    return ""


def wants_virtual_host(endpoint: str) -> bool:
    """Whether the service is known to take buckets in the host's name only."""
    return bool(_VIRTUAL.fullmatch(_host(endpoint)))


def is_aws(endpoint: str) -> bool:
    """Whether the endpoint is one of Amazon's."""
    return _host(endpoint).endswith((".amazonaws.com", ".amazonaws.com.cn"))


def _host(endpoint: str) -> str:
    try:
        return urlsplit(endpoint).hostname or ""
    except ValueError:
        return ""  # whoever opens a session to it says what is wrong
