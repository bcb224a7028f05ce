"""No module imports itself through others, imports for types and inside functions included."""

from graphlib import CycleError, TopologicalSorter

import grimp


def test_no_module_of_the_service_imports_itself_through_others() -> None:
    graph = grimp.build_graph("service", cache_dir=None)
    imports = {name: graph.find_modules_directly_imported_by(name) for name in graph.modules}
    try:
        TopologicalSorter(imports).prepare()
    except CycleError as error:
        raise AssertionError(" <- ".join(error.args[1])) from None
