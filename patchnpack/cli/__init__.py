"""The command line: verbs over library calls."""
