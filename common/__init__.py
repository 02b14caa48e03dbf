"""What does every file use? Errors, safe files, the machine, command lines, several processes."""
