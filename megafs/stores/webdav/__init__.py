"""Objects on a WebDAV server: Apache, nginx, lighttpd, Nextcloud, rclone, ..."""
