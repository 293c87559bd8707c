"""The protocols that clients can use: KServe's V1 and V2, and OpenAI's chat completions."""
