"""The panel: one file per section, its shortcuts and its texts."""
