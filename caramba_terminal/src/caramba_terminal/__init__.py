"""What a terminal or a pipe shows while a program works: bars, plain lines, tables, numbers in words."""
