"""What people read: rows and tables, plots, comparisons, advice, model cards."""
