"""What an environment needs beside the project: written into a folder, to be read before it is installed."""
