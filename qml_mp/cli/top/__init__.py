"""Client: `qml-mp top`: what runs, what waits and what fails, live, with keys to change it."""
