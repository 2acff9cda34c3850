"""What a client says is exposed: written down by whoever carries its answers, before they leave."""

import pytest

from quorate.privacy.secagg import SecAggParameters
from quorate.summation import Exposure
from tests.privacy.secagg.sessions import SEMI_MALICIOUS, drive, prepare

N, M, R = Exposure.NOTHING, Exposure.MASKED, Exposure.REVEALED


@pytest.mark.parametrize(
    ("parameters", "expected"),
    [
        # after: roster, neighbours, inbox, survivors (, acknowledgements)
        (SecAggParameters(), [N, N, M, R]),
        (SEMI_MALICIOUS, [N, N, M, M, R]),
    ],
)
def test_a_vector_is_exposed_under_masks_first_and_with_the_shares_at_the_end(parameters, expected):
    run = prepare(9, parameters, min_survivors=6, length=9)
    client = run.clients["client-0"]
    seen, receive = [], client.receive

    def watched(data):
        answer = receive(data)
        seen.append(client.exposure)
        return answer

    client.receive = watched
    assert client.exposure is N
    drive(run, {})
    assert seen == expected
