"""Client: parse, compress and hash many real files on two cores. Run it: python examples/digest_stdlib.py"""

import ast
import hashlib
import lzma
import sysconfig
from pathlib import Path

from qml_mp import BackgroundJobServer, QmlApp, ServerConfig

app = QmlApp("memory://")  # gone with this program; "sqlite:///digests.db" would stay


@app.job(timeout="1m")
def digest(path: str) -> dict[str, int | str]:
    source = Path(path).read_bytes()
    nodes = sum(1 for _ in ast.walk(ast.parse(source)))
    packed = lzma.compress(source)
    return {"nodes": nodes, "packed": len(packed), "sha256": hashlib.sha256(packed).hexdigest()}


def main() -> None:
    files = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
    handles = app.enqueue_many(digest.job(str(file)) for file in files)
    with BackgroundJobServer(ServerConfig(worker_count=2), app.storage, app.program):
        for file, handle in zip(files, handles, strict=True):
            print(file.name, handle.wait(timeout="5m"))


if __name__ == "__main__":
    main()
