"""Files from elsewhere: downloads, archives, and folders of a hub."""
