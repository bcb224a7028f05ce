"""The commands, one file per group: each reads its options, asks the client, and shows the answer."""
