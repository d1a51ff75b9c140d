"""The site: pages, and the scripts that make the pages which are not written."""
