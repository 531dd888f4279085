"""Whether what the exporter says of jobs is what QEMU did: random jobs on real QEMU, and a judge.

`python -m tests.truth --seconds 1200` drives VMs by a seed, has the exporter watch them as a process
of its own, and compares each verdict of the exporter with QEMU's own events.

* `driver`, `operations`, `disk`, `machine`: what is done to the VMs.
* `recorder`: what QEMU says of it, on a monitor of its own.
* `traced`, `scraper`, `quiet`: what the exporter says of it.
* `record`: both, as plain data. `oracle`, `matching`, `judge`, `mutation`, `report`: pure.
"""
