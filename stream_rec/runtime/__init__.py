"""What every process needs: signals, retries, the terminal, memory and cores."""
