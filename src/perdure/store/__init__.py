"""Where runs are kept: one contract (``contract``), several databases."""
