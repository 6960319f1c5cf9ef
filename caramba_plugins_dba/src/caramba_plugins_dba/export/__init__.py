"""DBA models as folders that transformers loads with their own modeling file."""
