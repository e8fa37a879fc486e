"""From one file that describes a federation to a folder for its server and one for each of its sites."""
