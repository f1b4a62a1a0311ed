"""This server and others, serving the same network to the same clients: the package's ``__main__`` says how.

``rows``       who takes part, and how each is started
``questions``  what is asked, and what the right answers are
``load``       the clients: closed loops, and a Poisson process
``server``     one server in its processes, all on one core
``offline``    solvers without HTTP, beside each other
``report``     medians, the table, the targets
``rivals``     the other servers, a file each; they run in an environment of their own
"""
