"""What people look at: the report, and pictures, tables and plots of clusters."""
