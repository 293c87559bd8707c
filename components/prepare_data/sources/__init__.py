"""Where a table comes from: files, the web, S3 and the Hugging Face hub."""
