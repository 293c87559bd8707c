"""Sources of tables: files, the web, S3 and the Hugging Face hub."""
