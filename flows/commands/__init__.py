"""What commands of the line share: options, consoles, what is printed; and the smaller commands."""
