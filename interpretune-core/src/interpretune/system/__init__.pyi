from interpretune.system.compiled import compiled_in_place as compiled_in_place, uncompiled as uncompiled
from interpretune.system.credentials import without_credentials as without_credentials
from interpretune.system.own_context import OwnContext as OwnContext
from interpretune.system.put_back import Changed as Changed, random_state_put_back as random_state_put_back
