"""The options of s3 URLs, for help, docs and the table of drivers; options.py reads them.

docs/mount-options.md is checked against this by a test.
"""

from __future__ import annotations

from megafs.stores.urls import StoreOption

S3_OPTIONS: tuple[StoreOption, ...] = (
    StoreOption(
        "endpoint",
        "https://s3.example.org",
        "The server: https://HOST[:PORT][/PATH]. Without it AWS_ENDPOINT_URL_S3, AWS_ENDPOINT_URL,"
        " what the profile says, and then AWS itself.",
    ),
    StoreOption(
        "region",
        "eu-west-1",
        "Without it AWS_REGION, AWS_DEFAULT_REGION, what the profile says, what the name of a large"
        " provider's endpoint says, or us-east-1.",
    ),
    StoreOption(
        "path_style",
        "yes",
        "`yes`: https://HOST/BUCKET/KEY; `no`: https://BUCKET.HOST/KEY; `auto` (default): as the"
        " profile says, else `no` at AWS and at services that take nothing else.",
    ),
    StoreOption(
        "profile",
        "backup",
        "A profile of ~/.aws/config and ~/.aws/credentials: its keys, and its endpoint, region,"
        " addressing style and certificates, before those of the environment.",
    ),
    StoreOption(
        "credentials_file",
        "/etc/megafs/home.keys",
        "A file with the keys, which others may not read: in the form of ~/.aws/credentials"
        " (`profile` says which section) or one line ACCESS:SECRET. Read again when the store"
        " refuses the keys.",
    ),
    StoreOption(
        "ca",
        "/etc/ssl/example.pem",
        "Certificates to trust instead of the system's; or AWS_CA_BUNDLE, or the profile's"
        " ca_bundle.",
    ),
    StoreOption(
        "dualstack", "yes", "AWS's endpoints with IPv6; or AWS_USE_DUALSTACK_ENDPOINT, or the"
        " profile's use_dualstack_endpoint."
    ),
    StoreOption(
        "fips", "yes", "AWS's endpoints with FIPS 140; or AWS_USE_FIPS_ENDPOINT, or the profile's"
        " use_fips_endpoint."
    ),
    StoreOption(
        "sign_payload",
        "yes",
        "Sign a hash of every body; `auto` (default): only where there is no TLS.",
    ),
    StoreOption(
        "conditional_put",
        "no",
        "For a store that refuses If-None-Match (Backblaze B2): look before writing, which two"
        " machines at once can get wrong, so that one machine at a time writes.",
    ),
    StoreOption(
        "check_bucket",
        "no",
        "`megafs format` neither looks for the bucket nor makes it, for keys that may do neither.",
    ),
    StoreOption(
        "storage_class",
        "STANDARD_IA",
        "For objects of 128 KiB and more, the packs; the cheaper classes bill smaller ones as that"
        " large. None from which a read takes hours (GLACIER, DEEP_ARCHIVE).",
    ),
    StoreOption(
        "sse",
        "aws:kms",
        "Ask the server to encrypt what it stores, on top: `AES256`, `aws:kms` or `aws:kms:dsse`.",
    ),
    StoreOption("sse_kms_key_id", "alias/backup", "Which of the server's keys, for `sse=aws:kms`."),
    StoreOption(
        "acl", "bucket-owner-full-control", "A canned ACL for everything that is stored."
    ),
    StoreOption(
        "requester_pays", "yes", "Agree to pay for the requests to a bucket of somebody else."
    ),
    StoreOption(
        "connect_timeout", "10", "Seconds for a connection to come about, TLS included. [10]"
    ),
    StoreOption("read_timeout", "30", "Seconds without any byte of an answer. [30]"),
)  # fmt: skip
