"""The embedded log: a directory that several processes of one machine share."""
