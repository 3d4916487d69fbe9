"""What a run looks like: report.html, tables, MLflow."""
