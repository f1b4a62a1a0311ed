"""This server and others, serving the same network to the same clients. The command is in ``__main__``.

``rows``      the servers that are compared, and how each is started
``requests``  what the clients send, and the labels that count as correct
``load``      the clients: closed loops, and a Poisson process
``server``    one server with all its processes on one core
``offline``   solvers without HTTP
``report``    medians, the table and the targets
``rivals``    the other servers, one per file; they run in their own environment
"""
