"""What finds and reads the digits in a picture."""
