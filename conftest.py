"""Nothing is configured here: the plugin loads through its entry point."""
