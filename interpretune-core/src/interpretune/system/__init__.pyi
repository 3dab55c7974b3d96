from interpretune.system.compiled import uncompiled as uncompiled
from interpretune.system.own_context import OwnContext as OwnContext
from interpretune.system.put_back import Changed as Changed, random_state_put_back as random_state_put_back
