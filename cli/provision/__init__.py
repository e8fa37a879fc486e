"""Make the kits of a federation, one for the server and one per site, from the file that describes it."""
