"""What a GPU needs beside LoRA: memory and streams, paged attention, captured graphs."""
