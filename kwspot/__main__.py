"""`python -m kwspot` is the command `kwspot`. The one module that no notebook exports."""
from kwspot.cli import main

if __name__ == '__main__': main()
