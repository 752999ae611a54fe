"""What a run found: its figures, its tables and its charts."""
