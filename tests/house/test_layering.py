"""Who may include whom, in C++ and in Python; the table itself is in CMakeLists.txt."""

import ast
import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]
INCLUDE = re.compile(r'^\s*#\s*include\s*[<"]([^>"]+)[>"]', re.MULTILINE)
TORCH = re.compile(r"^(torch|ATen|c10|caffe2)/")
CUDA = re.compile(r"^(cuda|cublas|cusparse|nv|cub/|thrust/|cooperative_groups)")
SOURCES = {".h", ".cc", ".cu", ".cuh"}
DIALECT = Path("kernels/cuda_dialect.cuh")  # the language of kernels, on a device or emulated


@pytest.fixture(scope="module")
def generate() -> ModuleType:
    spec = importlib.util.spec_from_file_location("docs_generate", ROOT / "docs" / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def broken_includes(path: Path, text: str, rooms: dict[str, list[str]]) -> list[str]:
    """Sentences about includes of a csrc file (path relative to csrc) that the table does not allow."""
    found = []
    room = path.parts[0]
    allowed = {room, *rooms.get(room, [])} if room != "bindings" else {"bindings", *rooms}
    cuda_file = path.stem.endswith("_cuda") or path == DIALECT
    for name in INCLUDE.findall(text):
        target = name.split("/")[0]
        if TORCH.match(name):
            found.append(f"csrc/{path} includes {name}: csrc knows no torch header")
        if CUDA.match(name) and not cuda_file:
            found.append(f"csrc/{path} includes {name}: only *_cuda.* files may include CUDA")
        if "/" in name and target in {*rooms, "bindings"} and target not in allowed:
            found.append(f"csrc/{path} includes {name}: {room} may include {sorted(allowed)} only")
    return found


def test_every_room_has_a_line_in_cmake(generate: ModuleType) -> None:
    folders = {path.name for path in (ROOT / "csrc").iterdir() if any(path.rglob("*.*"))}
    assert folders - {"bindings"} <= set(generate.rooms())


def test_the_table_has_no_cycle(generate: ModuleType) -> None:
    seen: set[str] = set()
    for room, allowed in generate.rooms().items():  # each room comes after those it includes
        assert set(allowed) <= seen, (
            f"{room} includes {set(allowed) - seen}, which come later in CMakeLists.txt"
        )
        seen.add(room)


def test_includes_obey_the_table(generate: ModuleType, texts: dict[Path, str]) -> None:
    broken = []
    for path, text in texts.items():
        if path.parts[0] == "csrc" and path.suffix in SOURCES:
            broken += broken_includes(path.relative_to("csrc"), text, generate.rooms())
    assert not broken, "\n".join(broken)


@pytest.mark.parametrize(
    ("path", "line"),
    [
        ("policy/lru.cc", '#include "cache/cache.h"'),
        ("cache/cache.cc", '#include "device/backend.h"'),
        ("kernels/ffn.cc", "#include <torch/extension.h>"),
        ("device/lane.cc", "#include <cuda_runtime.h>"),
        ("device/cuda/cuda_backend.cc", "#include <cuda_runtime_api.h>"),
        ("core/types.h", '#  include "engine/engine.h"'),
    ],
)
def test_the_check_itself_refuses(generate: ModuleType, path: str, line: str) -> None:
    assert broken_includes(Path(path), f"// words\n{line}\n", generate.rooms())


def test_the_check_itself_allows_cuda_in_cuda_files(generate: ModuleType) -> None:
    assert not broken_includes(Path("kernels/ffn_cuda.cu"), "#include <cuda_bf16.h>\n", generate.rooms())


def test_architecture_shows_the_table(generate: ModuleType) -> None:
    page = (ROOT / "docs" / "architecture.md").read_text()
    assert page == generate.replaced(page), (
        f"run `python docs/generate.py`: docs/architecture.md should say\n\n{generate.table()}"
    )


def test_only_models_imports_transformers(texts: dict[Path, str]) -> None:
    broken = []
    for path, text in texts.items():
        inside = path.parts[:2] == ("python", "prophet_moe") and path.suffix == ".py"
        if not inside or path.parts[2] == "models":
            continue
        for node in ast.walk(ast.parse(text)):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                names = [node.module or ""]
            broken += [f"{path}:{node.lineno}" for name in names if name.split(".")[0] == "transformers"]
    assert not broken, "only prophet_moe/models may import transformers: " + ", ".join(broken)
