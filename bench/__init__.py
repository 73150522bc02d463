"""`make bench`: DSS beside two floors (a bare aiohttp hello, etcd) on this machine. Not a test."""
