"""check_host: the one suite that every host passes; a test of a new host runs it, or its checks one by one.

Only names the checks and their order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from octavo.testing import host_answers, host_endings, host_load
from octavo.testing.host import Host, Offline

# The last one ends the host.
HOST_CHECKS: dict[str, Callable[[Host, Offline], None]] = {
    check.__name__: check
    for check in (
        host_answers.whole_answers_are_their_pieces,
        host_answers.a_stream_comes_in_pieces,
        host_answers.seeded_texts_are_always_the_same,
        host_answers.bad_requests_are_told_what_is_wrong,
        host_answers.an_unknown_model_is_not_found,
        host_answers.a_bad_request_harms_nobody_else,
        host_load.a_client_that_leaves_frees_everything,
        host_load.a_client_that_leaves_the_queue_frees_its_place,
        host_load.one_request_too_many_is_refused,
        host_load.a_time_limit_ends_a_request,
        host_endings.streams_survive_the_engine,
        host_endings.a_server_that_stops_finishes_what_it_has_begun,
    )
}


def check_host(host: Host, offline: Offline, names: Iterable[str] = HOST_CHECKS) -> None:
    """Runs the checks of these names; raises an AssertionError that begins with the name of the first that fails.

    The host needs steps of some milliseconds (`create_paced_executor`), a context of some thousand tokens, four places
    to run and three to wait or more, and nobody else who asks it. After all checks it has stopped.
    """
    for name in names:
        try:
            HOST_CHECKS[name](host, offline)
        except Exception as error:
            raise AssertionError(f"{name}: {error}") from error
