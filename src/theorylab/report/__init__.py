"""From records to figures to pages."""
